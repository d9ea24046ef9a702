"""What alerting rules would have said of a log: it is replayed into samples, and Prometheus itself evaluates the rules.

`processes` finds out which processes wrote the log, `samples` turns it into samples over time, `programs` runs promtool
and Prometheus, `alerts` makes of an expression's values what an alert would have done, and `run` is all of it.
"""
