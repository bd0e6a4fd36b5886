from common.command_line import run_stage

run_stage("train")
