"""`./stokehold up`, `down`, `status`, `logs`, `chat`: one installation on one machine, under one supervisor.

`bootstrap.py` installs (standard library only), `programs.py` says what runs, `supervision.py` starts and asks the
supervisor, `preparation.py` and `demo.py` do the one-time work with Django, `up.py` and `down.py` put it in order.
"""
