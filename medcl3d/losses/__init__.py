"""Pure functions on similarities and relations."""
