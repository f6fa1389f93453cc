"""What each kind of plug-in must do: one file a kind."""
