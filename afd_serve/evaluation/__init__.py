"""How much of the accuracy that compression took does AFD win back: protocols, metrics, datasets and reports."""
