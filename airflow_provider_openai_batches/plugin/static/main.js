// Airflow imports this file for the page and, as main.js?tab, for the task's tab, and looks both components up by name.

import { loadStyles } from "./host.js";
import { BatchesPage } from "./batches_page.js";
import { JobTab } from "./job_tab.js";

await loadStyles();
globalThis["OpenAI Batches"] = BatchesPage;
globalThis["OpenAI Batch Job"] = JobTab;
