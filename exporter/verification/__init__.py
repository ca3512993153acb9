"""Judge a bundle: against its reference, another bundle or labelled images, as a whole or block by block; report it."""
