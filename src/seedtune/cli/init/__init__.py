"""``seedtune init``: a commented settings file for one's own data and reward, checked before it is written."""
