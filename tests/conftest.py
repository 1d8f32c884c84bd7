from jaxtyping import install_import_hook

hook = install_import_hook("weightbank", "typecheck.checked")
