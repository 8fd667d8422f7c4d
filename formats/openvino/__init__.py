"""The reader of OpenVINO's networks."""
