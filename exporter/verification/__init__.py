"""Judge a bundle: against its reference, another bundle, or labelled pictures; and report what was found."""
