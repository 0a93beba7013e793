"""Request and response models of what an operator manages: keys, audit log, policy, monitors."""
