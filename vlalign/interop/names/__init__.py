"""Tables of parameter names, one family a file: functions that return `Row`s."""
