"""How a bound is climbed, whatever it is: starting values, coordinate ascent from many starts, minibatches and step
sizes, Newton, L-BFGS, SQUAREM, when to stop, and which optima the restarts found (`modes`).
"""
