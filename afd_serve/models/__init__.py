"""The AFD model: FDE-Net, FE-Net, channel gates, and how they attach to a frozen backbone."""
