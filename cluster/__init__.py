"""The place where work runs: functions go in, and run on Ray or in this process. Nothing here knows of images."""
