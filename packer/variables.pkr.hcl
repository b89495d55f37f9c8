# What is baked: one of these for all builders.

variable "package" {
  type        = string
  description = "Our package on this machine: a .deb, an .rpm or a wheel (.whl)."
}

variable "section" {
  type        = string
  default     = ""
  description = "A file with the conntrack: section of the image; packer/95_conntrack.cfg if it is not named."
}

variable "packages" {
  type        = string
  default     = "cloud-init haproxy"
  description = "Packages of the distribution that the image must have, with spaces between; those that it has are not asked for."
}

variable "output" {
  type        = string
  default     = "build/image"
  description = "Directory for the disk of the qemu builder; it must not exist. Manifest and checksum stand beside it."
}

variable "name" {
  type        = string
  default     = ""
  description = "Name of the image; if it is not given, the distribution's and the time."
}

# Where it starts from: set by images/*.pkrvars.hcl.

variable "image" {
  type        = string
  description = "Short name of the distribution: small letters, digits and hyphens."
}

variable "ssh_username" {
  type        = string
  description = "Account that the distribution's image has for qemu and OpenStack."
}

variable "qemu_url" {
  type        = string
  description = "The distribution's disk, qcow2 or raw: an address or a path."
}

variable "qemu_checksum" {
  type        = string
  description = "Its sum: file:ADDRESS of the distribution's list of sums, sha256:HEX, or none."
}

variable "openstack_image" {
  type        = string
  description = "Name of the distribution's image in your OpenStack."
}

variable "amazon_owner" {
  type        = string
  description = "Account number of the distribution at Amazon."
}

variable "amazon_image" {
  type        = string
  description = "Pattern of the image's name at Amazon; the newest is taken."
}

variable "amazon_ssh_username" {
  type        = string
  description = "Account that the distribution's image has at Amazon."
}

variable "google_family" {
  type        = string
  description = "Image family at Google."
}

variable "google_project" {
  type        = string
  description = "Project of that family."
}

variable "azure_image" {
  type        = list(string)
  description = "Publisher, offer and SKU at Azure."
}

variable "azure_plan" {
  type        = bool
  description = "Whether that image has terms at Azure, which somebody of your subscription accepts once."
}

# qemu

variable "seed" {
  type        = string
  default     = "build/seed"
  description = "Directory that packer/seed.sh made: a key pair for this bake, and the user-data that lets it in."
}

variable "accelerator" {
  type        = string
  default     = "kvm"
  description = "How qemu runs the guest: kvm, or tcg where there is no KVM (ten to twenty times slower)."
}

variable "memory" {
  type        = number
  default     = 1024
  description = "The guest's memory in MB."
}

variable "ssh_timeout" {
  type        = string
  default     = "15m"
  description = "How long the guest may take until sshd answers."
}

# The clouds: where to build. Who you are is asked of each cloud's own environment variables and files.

variable "amazon_region" {
  type        = string
  default     = "eu-central-1"
  description = "Region at Amazon."
}

variable "amazon_type" {
  type        = string
  default     = "t3.small"
  description = "Instance type at Amazon."
}

variable "openstack_flavor" {
  type        = string
  default     = "m1.small"
  description = "Flavor in OpenStack."
}

variable "openstack_networks" {
  type        = list(string)
  default     = []
  description = "UUIDs of the networks in OpenStack; none lets OpenStack choose."
}

variable "google_account_project" {
  type        = string
  default     = "unset"
  description = "Your project at Google."
}

variable "google_zone" {
  type        = string
  default     = "europe-west3-a"
  description = "Zone at Google."
}

variable "azure_subscription" {
  type        = string
  default     = "00000000-0000-0000-0000-000000000000"
  description = "Your subscription at Azure; the login is that of the az command."
}

variable "azure_resource_group" {
  type        = string
  default     = "images"
  description = "Resource group at Azure that the image is put into."
}

variable "azure_location" {
  type        = string
  default     = "westeurope"
  description = "Location at Azure."
}
