"""How each event changes what is known: a file for each thing that events are about."""
