"""Moving gitlab schemas from one database to another: states, rules, and the steps that they allow."""
