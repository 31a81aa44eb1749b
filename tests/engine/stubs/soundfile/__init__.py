"""Nothing here hears anything; SGLang's server imports this on the way up."""
