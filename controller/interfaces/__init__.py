"""Who sees it: admin socket, MQTT, systemd."""
