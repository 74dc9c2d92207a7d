"""What everything stands on, and nothing of models: plain errors, checks of options, numbers free of their constraints,
random state, a bar of progress, run folders on disk. Knows torch and the disk; imports nothing of the house.
"""
