"""The one loop that trains networks: experts, teachers, and those that evaluate a set."""
