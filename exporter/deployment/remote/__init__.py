"""Build an engine on another machine, over ssh and scp as the system has them."""
