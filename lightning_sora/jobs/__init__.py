"""Work that runs elsewhere: functions with JSON arguments, in processes of this machine or on a Ray cluster."""
