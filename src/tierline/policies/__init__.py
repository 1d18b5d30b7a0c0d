"""Small pure policies, one file each. A policy proposes; its scheduler disposes."""
