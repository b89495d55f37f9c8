locals {
  time    = formatdate("YYYYMMDDhhmm", timestamp())
  name    = var.name == "" ? "${var.image}-stateless-${local.time}" : var.name
  section = var.section == "" ? "${path.root}/95_conntrack.cfg" : var.section
}

source "qemu" "image" {
  iso_url          = var.qemu_url
  iso_checksum     = var.qemu_checksum
  disk_image       = true
  skip_resize_disk = true
  format           = "qcow2"
  accelerator      = var.accelerator
  memory           = var.memory
  headless         = true
  boot_wait        = "1s"

  # NoCloud by the network: any cloud image reads where its seed is from the serial number of its board.
  http_directory       = "${var.seed}/http"
  qemuargs             = [["-smbios", "type=1,serial=ds=nocloud-net;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"]]
  ssh_username         = var.ssh_username
  ssh_private_key_file = "${var.seed}/key"
  ssh_timeout          = var.ssh_timeout
  shutdown_command     = "sudo shutdown -P now"

  output_directory = var.output
  vm_name          = "${local.name}.qcow2"
}

source "amazon-ebs" "image" {
  # Packer 1.6 signs with RSA keys as sshd has refused since OpenSSH 8.8.
  temporary_key_pair_type = "ed25519"
  region                  = var.amazon_region
  instance_type           = var.amazon_type
  ssh_username            = var.amazon_ssh_username
  ami_name                = local.name
  ena_support             = true

  source_ami_filter {
    owners      = [var.amazon_owner]
    most_recent = true
    filters = {
      name                = var.amazon_image
      architecture        = "x86_64"
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
  }
}

source "openstack" "image" {
  temporary_key_pair_type = "ed25519"
  flavor                  = var.openstack_flavor
  networks                = var.openstack_networks
  source_image_name       = var.openstack_image
  ssh_username            = var.ssh_username
  image_name              = local.name
}

source "googlecompute" "image" {
  temporary_key_pair_type = "ed25519"
  project_id              = var.google_account_project
  zone                    = var.google_zone
  source_image_family     = var.google_family
  source_image_project_id = [var.google_project]
  ssh_username            = "packer"
  image_name              = local.name
  image_family            = "${var.image}-stateless"
}

source "azure-arm" "image" {
  use_azure_cli_auth                = true
  subscription_id                   = var.azure_subscription
  os_type                           = "Linux"
  image_publisher                   = var.azure_image[0]
  image_offer                       = var.azure_image[1]
  image_sku                         = var.azure_image[2]
  location                          = var.azure_location
  ssh_username                      = "packer"
  managed_image_name                = local.name
  managed_image_resource_group_name = var.azure_resource_group

  dynamic "plan_info" {
    for_each = var.azure_plan ? [var.azure_image] : []
    content {
      plan_publisher = plan_info.value[0]
      plan_product   = plan_info.value[1]
      plan_name      = plan_info.value[2]
    }
  }
}
