"""Simulated EEG: sources in a spherical head, recorded by devices of many kinds, written as real files.

head        electrode positions on a sphere, the potentials of current dipoles at them
brain       time courses: background, rhythms, blinks, muscles, mains, drift, bad channels
devices     what is simulated to record it: channels, rate, format, unit
writing     EDF, BDF, BrainVision and FIF files
"""
