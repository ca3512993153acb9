"""Why does it not work here: what this machine has (`facts`), and what is wrong with it (`rules`)."""
