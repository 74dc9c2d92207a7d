"""Exact EM (`fit.fit_em`): how each param is maximised (`plan`), by closed forms, regressions, or gradient (`mstep`,
`regression`, `gradient`).
"""
