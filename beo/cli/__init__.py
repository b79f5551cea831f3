"""The command line: one click group (`group`), and a module per family of verbs, loaded when its verb is called."""
