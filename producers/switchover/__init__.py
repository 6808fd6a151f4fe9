"""Switchover: moves gitlab schemas from one database to another by states, rules, and the steps that they allow."""
