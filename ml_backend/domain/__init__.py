"""The words of the project and what holds about them without anything from outside."""
