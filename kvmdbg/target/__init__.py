"""A live VM as a debugger sees it: capabilities, breakpoints, stops, run states, and a facade.

Nothing here knows how an engine works, or which protocol a client speaks.
"""
