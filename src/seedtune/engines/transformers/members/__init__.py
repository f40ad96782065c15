"""Perturbed members of the population inside a model: low-rank, flipout or gaussian.

All kinds hold ``weights``, the current ones, and ``coverage``.  ``together`` says whether all members of a job are set
at once, or each alone.  ``install`` takes over the model, whose parameters have their final precision and device.
``sync`` follows changed current weights; with a step the members are perturbed from the weights moved by it, until the
next ``sync``.  ``set_members`` prepares a batch, ``set_rows`` assigns each row of the next forward pass to a member.
"""
