"""The command line: its words (`arguments`, `typed`), what it prints (`terminal`), and the commands (`listing`, without
torch; `commands`).
"""
