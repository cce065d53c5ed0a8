"""Other people's weights in and out: names as tables, files read without executing anything."""
