"""The physics of EEG on arrays: units, channels, filtering, resampling, reference, quality.

Arrays in, arrays out, in microvolts; nothing here knows files or imports another part of ddscale.

    units           microvolts_per, implausible_unit
    channels        Channel, standardise
    survey          survey: a bounded first look at a recording (levels, bad channels, line frequency)
    preprocessing   Preprocessing (settings), plan, process, split_at_nonfinite
    quality         Quality (settings), bad_channels, Meter: cells of a recording judged by reason
    filtering, resampling, reference   the parts that `process` chains
"""
