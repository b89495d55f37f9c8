"""Planning, room by room: each adds its actions, blockers and findings to one draft."""
