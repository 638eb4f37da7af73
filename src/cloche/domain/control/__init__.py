"""What can be asked of a running domain, by its owner and from another process (layer 5).

``door`` is the listening socket in the run directory, ``server`` the supervisor's side and ``client`` the other one;
``wire`` holds what they say to each other, and each request is a module of its own. ``protocol/control.md`` is the
specification. Nothing but ``door`` is imported before somebody asks something.
"""
