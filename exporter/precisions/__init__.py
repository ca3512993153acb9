"""Plug-ins: one file per precision, each a rewrite of a typed FP32 graph. The file's name is the flag's name.

A file has

    BUDGET                               what parity allows
    RUNS_ON                              the backends that run its file on a CPU, and so prove it; none where only the simulation does
    observed(model) -> names             the tensors whose ranges must be measured first; none where no calibration is needed
    lower(model, thresholds) -> model    the graph in this precision; its argument stays as it was. `thresholds` maps each observed tensor
                                         to the largest magnitude it is to hold
    simulated(model) -> model | None     the lowered graph rewritten so that a CPU rounds as a device does; None where it does so anyway
"""
