"""Parts of the report of runs: markup, charts, answers, alarms and settings, all without scripts."""
