"""Who may call, how often, and over what: TLS, bearer tokens, rates and limits of connections."""
