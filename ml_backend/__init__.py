"""Rush for Label Studio: an ML backend that suggests, orders and learns while people label."""
