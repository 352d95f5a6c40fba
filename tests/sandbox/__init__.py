"""What tests and the demo need of a machine: namespaces, daemons, images, templates."""
