"""The set-up in stages: system, python, rust, kernel.

Every stage knows a *key*, a text that changes when anything changes that the stage depends on, and writes it into a
stamp when it is done. A stage whose key stands in its stamp does nothing, so a second set-up costs a few milliseconds.
That is also why nothing heavy (``subprocess``, ``selectors``) is imported before there is something to do.

Nothing is written outside the project, the XDG cache, cargo's own cache and the installed packages.
"""
