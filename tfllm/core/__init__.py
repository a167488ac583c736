"""What every room stands on: errors a user can mend, files, the console."""
