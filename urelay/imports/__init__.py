"""Configurations of the tools urelay comes from, written anew as policies: text in, text out."""
