# haproxy nodes in a managed instance group of Google's, none of which serves before it is stateless.
#
# The image has the package, "cloudinit-conntrack enable" run in it, and haproxy-conntrack.conf.
# Nobody has to say anything: haproxy starts when "verify" holds, and the health check asks haproxy. A
# node that does not answer gets no traffic, and after ten minutes it is made anew. For Terraform
# and OpenTofu; docs/how-to/autoscaling.md has the whole story.
#
# For a stock image: user-data = file("user-data"), written by
# "cloudinit-conntrack userdata -c section.yaml --merge stock-node.yaml -o user-data".
#
# What it gives up: ten minutes, and one node, for every node that fails.

terraform {
  required_providers {
    google = { source = "hashicorp/google" }
  }
}

variable "image" {
  type        = string
  description = "an image baked as above"
}

variable "region" {
  type = string
}

variable "subnetwork" {
  type = string
}

variable "machine_type" {
  type    = string
  default = "c3-highcpu-4"
}

variable "nodes" {
  type    = object({ least = number, most = number })
  default = { least = 2, most = 6 }
}

locals {
  user_data = <<-EOT
    #cloud-config
    write_files:
      - path: /etc/cloud/cloud.cfg.d/96_conntrack.cfg  # over the image's 95_conntrack.cfg
        content: |
          conntrack:
            mode: unload
            fallback: stateless
            flows: {haproxy_cfg: /etc/haproxy/haproxy.cfg}
            guard: {keep: [22]}
    EOT
}

resource "google_compute_region_instance_template" "node" {
  name_prefix  = "haproxy-"
  region       = var.region
  machine_type = var.machine_type
  metadata     = { user-data = local.user_data }

  disk {
    source_image = var.image
  }
  network_interface {
    subnetwork = var.subnetwork
  }
  lifecycle {
    create_before_destroy = true
  }
}

# What a client would ask, and nothing else says that a node may serve.
resource "google_compute_region_health_check" "serves" {
  name                = "haproxy-serves"
  region              = var.region
  check_interval_sec  = 10
  timeout_sec         = 5
  healthy_threshold   = 2
  unhealthy_threshold = 3

  http_health_check {
    port = 80
  }
}

resource "google_compute_region_instance_group_manager" "nodes" {
  name               = "haproxy"
  region             = var.region
  base_instance_name = "haproxy"

  version {
    instance_template = google_compute_region_instance_template.node.id
  }
  named_port {
    name = "http"
    port = 80
  }
  auto_healing_policies {
    health_check      = google_compute_region_health_check.serves.id
    initial_delay_sec = 600
  }
  # A new template replaces a node only when its successor is healthy.
  update_policy {
    type                         = "PROACTIVE"
    minimal_action               = "REPLACE"
    max_surge_fixed              = 3
    max_unavailable_fixed        = 0
    instance_redistribution_type = "PROACTIVE"
  }
}

resource "google_compute_region_autoscaler" "nodes" {
  name   = "haproxy"
  region = var.region
  target = google_compute_region_instance_group_manager.nodes.id

  autoscaling_policy {
    min_replicas    = var.nodes.least
    max_replicas    = var.nodes.most
    cooldown_period = 120

    cpu_utilization {
      target = 0.6
    }
  }
}
