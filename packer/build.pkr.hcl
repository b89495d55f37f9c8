build {
  sources = [
    "source.qemu.image",
    "source.amazon-ebs.image",
    "source.openstack.image",
    "source.googlecompute.image",
    "source.azure-arm.image",
  ]

  provisioner "file" {
    source      = var.package
    destination = "/tmp/${basename(var.package)}"
  }

  provisioner "file" {
    source      = local.section
    destination = "/tmp/95_conntrack.cfg"
  }

  # A script that fails ends the bake, and nothing is kept.
  provisioner "shell" {
    scripts = [
      "${path.root}/scripts/install.sh",
      "${path.root}/scripts/stateless.sh",
      "${path.root}/scripts/clean.sh",
    ]
    environment_vars = [
      "PACKAGE=/tmp/${basename(var.package)}",
      "PACKAGES=${var.packages}",
      "SECTION=/tmp/95_conntrack.cfg",
    ]
    execute_command = "sudo env {{ .Vars }} sh -eu '{{ .Path }}'"
  }

  post-processor "manifest" {
    output     = "${var.output}.manifest.json"
    strip_path = true
  }

  post-processor "checksum" {
    only           = ["qemu.image"]
    checksum_types = ["sha256"]
    output         = "${var.output}.sha256"
  }
}
