"""One liar among honest sites: what each attack does to a run, without guards and with them."""
