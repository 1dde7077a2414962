"""``shortlist loadtest``: loads a running server as many callers do and states what it answered, how late and how well.

    command -> processes -> generator -> connection, calls, streams -> the server
               saturation    workload, ids, schedule, verify, tally, histogram
            -> summary -> slo, report

Every process draws its calls beforehand, makes them when they are due, and counts into histograms, which are merged.
"""
