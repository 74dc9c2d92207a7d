"""The command line: its words (`arguments`, `typed`), one command answered (`answer`), what it prints (`terminal`), and
the commands (`listing`, without torch; `commands`).
"""
