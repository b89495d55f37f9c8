"""Why conntrack is in use, as a tree: modules, tables, rules, services, namespaces, each with what removes it."""
